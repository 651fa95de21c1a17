"""Code that reads studies: records, fronts, tables, plots. What a run writes goes to runs/."""
