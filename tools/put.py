"""`make put FILE=rows.jsonl`: puts a file into the embedded cluster's store and prints the URI that a manifest names it by."""

import argparse
from pathlib import Path

from tools.demo import BUCKET, STATE, open_bucket


def main() -> None:
    """Ends with a sentence where there is no such file, or no cluster."""
    parser = argparse.ArgumentParser(prog="make put", usage="make put FILE=rows.jsonl")
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    if not path.is_file():
        parser.error(f"FILE={path}: there is no such file")
    if not (STATE / "s3.env").exists():
        parser.error("the embedded cluster is not running: `make cluster` starts it")
    key = f"data/{path.name}"
    open_bucket(BUCKET).put(key, path)
    print(f"s3://{BUCKET}/{key}")


if __name__ == "__main__":
    main()
