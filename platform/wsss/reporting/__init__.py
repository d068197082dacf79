"""What people see of a run: live progress, tables, plots, image grids and the report."""
