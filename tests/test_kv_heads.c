/* Scales of keys and values by head, calibrated on the CPU. */
#include "tests/kv_heads_check.h"

int main(void) { return kv_check_all("cpu"); }
