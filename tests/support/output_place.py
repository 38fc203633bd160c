"""Where an output lies in tests of storage: a local folder or the bucket."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from s3_server import S3Server


@dataclass
class Place:
    """Where an output lies, and how its parts are reached behind the project's back."""

    uri: str
    s3: S3Server | None = None

    def read(self, name: str) -> bytes:
        if self.s3 is None:
            return (Path(self.uri) / name).read_bytes()
        return self.s3.read(self._key(name))

    def write(self, name: str, data: bytes) -> None:
        if self.s3 is None:
            (Path(self.uri) / name).write_bytes(data)
        else:
            self.s3.put(self._key(name), data)

    def names(self, prefix: str = "") -> list[str]:
        if self.s3 is None:
            files = [str(path.relative_to(self.uri)) for path in Path(self.uri).rglob("*") if path.is_file()]
        else:
            files = [key.removeprefix("out/") for key in self.s3.read_all("out/")]
        return sorted(file for file in files if file.startswith(prefix))

    def parts(self) -> dict[str, bytes]:
        return {name: self.read(name) for name in self.names("part-")}

    @staticmethod
    def _key(name: str) -> str:
        return f"out/{name}"


def open_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return a folder or the bucket, as the parameter of a fixture says."""
    if request.param == "local":
        return Place(str(tmp_path / "output"))
    s3: S3Server = request.getfixturevalue("s3")
    return Place(s3.uri("out"), s3)
