"""``python -m mothership_backup`` is the command ``mothership-backup``."""

from mothership_backup.cli import main

if __name__ == "__main__":
    main()
