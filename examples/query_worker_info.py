"""Which LMCache workers there are, and where a prompt's KV lies: asks a cache controller, needs nothing but Python.

penstock cache-controller --host localhost --port 9000 --monitor-port 9001
python examples/query_worker_info.py [INSTANCE_ID] [URL]
"""

import json
import os
import sys
import time
import urllib.request
from typing import Any

INSTANCE = sys.argv[1] if len(sys.argv) > 1 else "lmcache_default_instance"
URL = sys.argv[2] if len(sys.argv) > 2 else "http://localhost:9000"


def post(path: str, body: dict[str, Any]) -> Any:
    """Call the controller."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("PENSTOCK_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


found = post("/query_worker_info", {"instance_id": INSTANCE, "worker_ids": []})
for worker in found["worker_infos"]:
    heard_s = time.time() - worker["last_heartbeat_time"]
    where = f"{worker['ip']}:{worker['port']}"
    print(f"{worker['instance_id']} worker {worker['worker_id']} at {where}, heard of {heard_s:.1f} s ago")
if not found["worker_infos"]:
    print(f"no worker of {INSTANCE!r} is registered")
status = post("/check_finish", {"event_id": found["event_id"]})
print(f"event {found['event_id']} is {status['status']}")
