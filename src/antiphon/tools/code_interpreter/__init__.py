"""`code_interpreter`: the model writes Python, a sandbox runs it.

`port.py` is what a sandbox must do; `local.py` is one that needs nothing but Linux; `containers.py` keeps what belongs
to whom; `tool.py` is what the model sees. `interpreter.py` and `confinement.py` run inside the sandbox.
"""
