"""``python -m components.launch`` is ``penstock``."""

from components.launch.entry import penstock

if __name__ == "__main__":
    penstock()
