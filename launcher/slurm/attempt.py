"""The name under which job scripts of earlier versions start `launcher.runs.job_attempt`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("launcher.runs.job_attempt", run_name="__main__")
