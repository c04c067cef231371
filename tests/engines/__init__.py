"""What every engine in this tree does alike: asked over HTTP, see conftest.py, and of single steps, see test_steps.py."""
