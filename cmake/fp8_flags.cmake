# Warnings and optimisation of every file of ours.
add_library(fp8_flags INTERFACE)
set(c_flags -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes
            -ffp-contract=off) # a fused multiply-add is written where it is meant
set(cuda_flags -Xcompiler=-Wall,-Wextra --expt-relaxed-constexpr -Xptxas=-warn-spills)
if(FP8_WERROR)
  list(APPEND c_flags -Werror)
  list(APPEND cuda_flags -Xcompiler=-Werror -Werror=all-warnings)
endif()
target_compile_options(fp8_flags INTERFACE $<$<COMPILE_LANGUAGE:C>:${c_flags}>
                       $<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>)
target_compile_definitions(fp8_flags INTERFACE _POSIX_C_SOURCE=200809L)
if(FP8_SANITIZE)
  set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(fp8_flags INTERFACE $<$<COMPILE_LANGUAGE:C>:${sanitize}>)
  target_link_options(fp8_flags INTERFACE -fsanitize=address,undefined)
endif()
