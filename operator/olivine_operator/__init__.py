"""The operator: watches FineTuneJobs, makes their children, reports their state."""
