# The installed tree is enough for a stranger's program: examples/fp8_forward.c builds against it
# through pkg-config and through CMake, as C and (headers) as C++, and runs on an FP8 checkpoint;
# examples/attention_link.c builds through pkg-config and agrees with the oracle; so do the two that
# serve, whose requests end as they should.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ "$FP8_SANITIZED" = 1 ] && { echo "skipped: a sanitized library needs a sanitized program"; exit 77; }
cmake --install "$FP8_BINARY_DIR" --prefix "$work/usr" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
lib=$(dirname "$(find "$work/usr" -name fp8rt.pc)")/..
export PKG_CONFIG_PATH=$lib/pkgconfig LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

"$work/usr/bin/fp8calib" run "$FP8_SOURCE_DIR/examples/sample-model" -o "$work/model-FP8" \
    --device cpu --samples 4 --seq 64 --no-eval --quiet >/dev/null
example=$FP8_SOURCE_DIR/examples/fp8_forward.c

if command -v pkg-config >/dev/null; then
    cc -std=c11 -Wall -Werror "$example" -o "$work/by-pkg-config" $(pkg-config --cflags --libs fp8rt)
    "$work/by-pkg-config" "$work/model-FP8" model.layers.0.mlp.up_proj.weight
    cc -std=c11 -Wall -Werror "$FP8_SOURCE_DIR/examples/attention_link.c" -o "$work/attention" \
        $(pkg-config --cflags --libs fp8rt) -lm
    "$work/attention" cpu >"$work/log"
    grep -q '^cpu: CPU, .*: serves$' "$work/log"
    grep -q '^relative error' "$work/log"
    for name in batch_generate serve_loop; do
        cc -std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Werror "$FP8_SOURCE_DIR/examples/$name.c" \
            -o "$work/$name" $(pkg-config --cflags --libs fp8rt) -lpthread
    done
    "$work/batch_generate" "$work/model-FP8" cpu 'Once upon a time' 'The river' >"$work/log"
    grep -q '^Once upon a time ->.' "$work/log" && grep -q '^The river ->.' "$work/log"
    "$work/serve_loop" "$work/model-FP8" cpu >"$work/log"
    [ "$(grep -c ': 24 ids, full$' "$work/log")" = 10 ]
    grep -q '^request 5: 10 ids, stopped$' "$work/log" # the id that ended it is given
    grep -q '^request 7: .*, canceled$' "$work/log"
    grep -q ' 4 of 4 pages free$' "$work/log"
else
    echo "pkg-config is not installed: that half is left out"
fi

mkdir "$work/project"
cat >"$work/project/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.25)
project(stranger C)
find_package(fp8calib 0.1 REQUIRED COMPONENTS rt calib)
add_executable(stranger $example)
target_link_libraries(stranger PRIVATE fp8calib::rt)
add_executable(batch_generate $FP8_SOURCE_DIR/examples/batch_generate.c)
target_link_libraries(batch_generate PRIVATE fp8calib::rt)
EOF
cmake -S "$work/project" -B "$work/project/b" -DCMAKE_PREFIX_PATH="$work/usr" >"$work/log" 2>&1 &&
    cmake --build "$work/project/b" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/project/b/stranger" "$work/model-FP8" model.layers.0.mlp.up_proj.weight

# What the library does not have is said in one line, with status 1.
if "$work/project/b/stranger" "$work/model-FP8" model.embed_tokens.weight 2>"$work/err"; then exit 1; fi
grep -q 'no FP8 weight' "$work/err"

for header in "$work"/usr/include/fp8/*.h; do
    name=$(basename "$header")
    echo "#include <fp8/$name>" | cc -std=c11 -Wall -Werror -I"$work/usr/include" -x c -fsyntax-only -
    if command -v c++ >/dev/null; then
        echo "#include <fp8/$name>" | c++ -Wall -Werror -I"$work/usr/include" -x c++ -fsyntax-only -
    fi
done
