"""What everything stands on: errors, registries, facts, settings, random numbers; nothing of models."""
