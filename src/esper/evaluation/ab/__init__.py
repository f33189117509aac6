"""A against B: two configurations, commits or implementations, measured in pairs until it is known which is better."""
