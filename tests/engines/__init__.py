"""What every engine in this tree does alike, asked over HTTP; see conftest.py."""
