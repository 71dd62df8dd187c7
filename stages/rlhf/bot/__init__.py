"""The trained models put to use: questions to them, and exports."""
