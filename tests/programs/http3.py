"""http3.py PACKAGES CA URL VERSION…: gets the page over HTTP/3 if that can be, else over TCP (`auto`), or
over HTTP/3 only (`only`); for each VERSION a line `VERSION HTTP-VERSION SECONDS`, or `VERSION failed SECONDS`.

PACKAGES is where `cargo xtask setup` has put curl with HTTP/3.
"""

import sys
import time

sys.path.insert(0, sys.argv[1])
from curl_cffi import CurlError, requests  # noqa: E402

NAMES = {1: "HTTP/1.0", 2: "HTTP/1.1", 3: "HTTP/2", 30: "HTTP/3"}

for version in sys.argv[4:]:
    start = time.monotonic()
    try:
        answer = requests.get(
            sys.argv[3],
            verify=sys.argv[2],
            http_version={"auto": "v3", "only": "v3only"}[version],
            timeout=20,
        )
        answer.raise_for_status()
        outcome = NAMES.get(answer.http_version, answer.http_version)
    except (CurlError, requests.exceptions.RequestException) as error:
        print(error, file=sys.stderr)
        outcome = "failed"
    print(version, outcome, round(time.monotonic() - start, 3), flush=True)
