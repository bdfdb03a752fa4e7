"""How a comparison looks: terminal, Markdown, LaTeX, HTML, and records for JSON, CSV and pandas."""
