"""Whether a folder lies on a disk of this machine, where file locks and shared memory work."""

from __future__ import annotations

import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

MOUNTS = Path("/proc/self/mountinfo")  # of Linux: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
LOCAL = frozenset(
    {
        "apfs", "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfsplus", "jfs",
        "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "udf",
        "vfat", "xfs", "zfs",
    }
)  # fmt: skip


def is_local(folder: Path) -> bool:
    """Whether a folder, which need not exist, is on a local disk; taken for granted where the system does not say.

    A file system of an unknown kind counts as shared.
    """
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    kind = kind_of(folder.resolve(), lines)
    logger.debug("%s is on a file system of kind %s", folder, kind)
    return kind is None or kind in LOCAL


def kind_of(folder: Path, lines: list[str]) -> str | None:
    """The kind of file system at a path, from the lines of `mountinfo`; None if none of them covers it.

    >>> lines = ["27 1 254:0 / / rw - ext4 /dev/vda rw", r"31 27 0:40 / /my\\040data rw shared:1 - nfs4 server:/x rw"]
    >>> kind_of(Path("/my data/results"), lines), kind_of(Path("/my"), lines)
    ('nfs4', 'ext4')
    """
    found: tuple[int, str] | None = None
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if not separator or len(fields) < 5 or not kinds:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        depth = len(point.parts)
        if (folder == point or point in folder.parents) and (found is None or depth >= found[0]):
            found = depth, kinds[0]  # of several at one place, the last covers the others
    return None if found is None else found[1]
