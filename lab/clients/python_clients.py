"""Runs the scenarios of one Python client in the clients' environment: `python python_clients.py openai`.

The output has a line of JSON for each scenario. A scenario passes if it raises nothing.
"""

import importlib
import json
import sys
import time
import traceback

if __name__ == "__main__":
    module = importlib.import_module(f"scenarios_{sys.argv[1]}")
    for name, scenario in module.SCENARIOS.items():
        result = {"scenario": name, "ok": False}
        began = time.monotonic()
        try:
            scenario()
            result["ok"] = True
        except Exception:
            result["why"] = traceback.format_exc()[-1500:]
        result["seconds"] = round(time.monotonic() - began, 2)
        print(json.dumps(result), flush=True)
