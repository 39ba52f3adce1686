"""Chat with a running graph through the `openai` package: one plain answer, then a streamed one.

.venv/bin/python examples/chat.py ["your question"]
"""

import os
import sys

from openai import OpenAI


def main() -> None:
    """Ask the model of the graph on port 8181 (or at OPENAI_BASE_URL) twice."""
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8181/v1"),
        api_key=os.environ.get("PENSTOCK_API_KEY", "none"),
    )
    model = client.models.list().data[0].id
    question = sys.argv[1] if len(sys.argv) > 1 else "What is a penstock?"
    messages = [{"role": "user", "content": question}]

    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=30)
    print("at once: ", answer.choices[0].message.content)

    print("streamed: ", end="", flush=True)
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=30, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
