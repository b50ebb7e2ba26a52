"""Every hard case, with its test: CASES.md says which test holds which; DEFECTS.md what they have found."""
