//! TODO
use proa_integration::tests;
tests! {}
