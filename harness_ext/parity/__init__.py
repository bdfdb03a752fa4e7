"""Is what is served what was evaluated? The served model and the adapter by peft are asked the same documents."""
