"""Pictures of a study, for its report."""
