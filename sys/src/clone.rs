//! clone3(2) with a fall-back to clone(2).
