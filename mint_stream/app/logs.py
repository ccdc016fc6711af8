"""Logs of a role: lines for people, or one JSON object a line for machines (`MINT_LOG_JSON=true`)."""

import json
import logging
import sys
import time


class JsonLines(logging.Formatter):
    """Time, level, logger and message; the codes and ids are in the message as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {"at": _utc(record.created), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(as_json: bool) -> None:
    """Send our logs from INFO up, and everybody else's from WARNING up, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s  %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mint_stream").setLevel(logging.INFO)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
