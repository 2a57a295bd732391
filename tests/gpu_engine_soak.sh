#!/bin/sh
# The traffic of test_engine_soak on CUDA, 20 seconds of it; FP8_SOAK_SECONDS says otherwise.
FP8_SOAK_DEVICE=cuda FP8_SOAK_SECONDS=${FP8_SOAK_SECONDS:-20} exec "$FP8_BINARY_DIR/tests/test_engine_soak"
