"""The toy bundles of tests/support, as the tests of this folder take them."""

from tests.support.toy_fixtures import edit_manifest, make_bundle, make_golden

__all__ = ["edit_manifest", "make_bundle", "make_golden"]
