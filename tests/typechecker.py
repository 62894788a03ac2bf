"""The type checker that pytest puts on every function of the shaped packages: an int is a float (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
