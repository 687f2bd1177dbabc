"""`python -m parity_tests.differences`."""

from parity_tests.differences.command import main

if __name__ == "__main__":
    main()
