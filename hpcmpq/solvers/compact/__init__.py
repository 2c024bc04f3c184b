"""The compact form of a problem: options removed, ties merged, one budget priced."""
