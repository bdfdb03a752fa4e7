"""How a comparison looks: tables, terminal, Markdown, LaTeX, HTML, CSV, JSON."""
