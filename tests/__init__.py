# A package, so that another `tests` among the installed packages (torch-fidelity brings one) does not hide this one.
