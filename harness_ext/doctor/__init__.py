"""Why a score is what it is: findings from logged samples, from training data and adapters, and by intervention."""
