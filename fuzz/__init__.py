"""Inputs made by a machine for whatever reads what others have written: `python -m fuzz --list`.

A target is one file in `targets`: its docstring says what must hold, `one_input(data)` checks that for one input and
needs nothing but Loom, `seeds()` makes inputs to begin with. `regressions/TARGET/` keeps inputs that once broke
something. The unit tests run all of these; `make fuzz` searches for more (with atheris, for hours where one likes).
"""
