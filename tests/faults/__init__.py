"""Faults (`make faults`): every kind of content at every place where a file comes in, and cases one by one.

`*_cases.py` list what people bring and machines do, area by area, with how each must end; see `case.py`.
"""
