"""``python -m pimlip_zoo`` is ``pimlip-zoo``."""

from pimlip_zoo.cli import main

if __name__ == "__main__":
    main()
