"""Publishing an adapter: its card, the Hub, checks of what a card claims, and export to other formats."""
