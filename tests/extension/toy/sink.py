"""RUN/toy.csv: step, name, value."""

from megatrain.monitor.sinks.registry import SINKS, SinkSpec


class CSV:
    def __init__(self, run, config, *, resume_step: int) -> None:
        self._file = open(run.path / "toy.csv", "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self._file.write(f"# {config.run.name} from {resume_step}\n")

    def write(self, step: int, values) -> None:
        self._file.writelines(f"{step},{name},{value}\n" for name, value in values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


SINKS.register("toy_csv", SinkSpec(sink="toy.sink:CSV"))
