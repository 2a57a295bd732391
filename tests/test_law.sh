#!/bin/bash
# tests/test_law.sh - the module law and the rules of style that a machine can check:
#   who includes whom; only public headers across modules; no file over 800 lines; file names unique;
#   lines of at most 100 characters; no C++ outside .cu; words that have no place.
# With a folder as argument, judges that tree alone; without, this tree and then itself.
self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
cd "${1:-${FP8_SOURCE_DIR:-$(dirname "$0")/..}}" || exit 1
modules="core formats quant attention model calib bench cli tests examples"
problems=$(mktemp) || exit 1
trap 'rm -f "$problems"' EXIT

mapfile -t files < <(find $modules -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o \
    -name '*.cuh' \) -not -path '*/build*' 2>/dev/null | sort)
mapfile -t scripts < <(find $modules .ci -type f \( -name '*.sh' -o -name '*.py' \) \
    -not -path '*/build*' 2>/dev/null | sort)
[ ${#files[@]} -gt 0 ] || { echo "test_law: no source files in $PWD" >&2; exit 1; }

# ---- includes -----------------------------------------------------------------------------------
# Public: MODULE/MODULE.h and the headers of its own folder that a public header includes. What else
# core/ has (cuda_check.h, inline mathematics) serves every module's sources, but no public header;
# NAME_impl.h is private everywhere.
awk '
    BEGIN {
        allow["core"] = ""
        allow["formats"] = allow["quant"] = "core"
        allow["attention"] = "core quant"
        allow["model"] = "core formats quant attention"
        allow["calib"] = "core formats quant model"
        allow["bench"] = "core formats quant attention model calib"
        allow["cli"] = allow["bench"] " bench"
        allow["tests"] = allow["examples"] = allow["cli"] " cli"
    }
    function module_of(path) { return substr(path, 1, index(path, "/") - 1) }
    FNR == 1 { from = module_of(FILENAME) }
    /^[ \t]*#[ \t]*include[ \t]*"/ {
        split($0, part, "\"")
        n++; file[n] = FILENAME; line[n] = FNR
        path[n] = index(part[2], "/") ? part[2] : from "/" part[2]
        if (from == module_of(path[n])) inner[FILENAME] = inner[FILENAME] " " path[n]
    }
    function publish(header,   list, i, count) {
        if (header in public) return
        public[header] = 1
        count = split(inner[header], list, " ")
        for (i = 1; i <= count; i++) publish(list[i])
    }
    END {
        for (m in allow) publish(m "/" m ".h")
        for (i = 1; i <= n; i++) {
            where = file[i] ":" line[i] ": includes \"" path[i] "\": "
            from = module_of(file[i]); to = module_of(path[i])
            if (from == to) continue
            if (index(" " allow[from] " ", " " to " ") == 0) {
                print where from "/ may include " (allow[from] == "" ? "nothing" : allow[from])
                continue
            }
            if (from == "tests" || path[i] in public) continue
            if (to == "core" && path[i] !~ /_impl\.h$/ && !(file[i] in public)) continue
            print where "it is private to " to "/"
        }
    }' "${files[@]}" >>"$problems"

# ---- sizes, lines, words ------------------------------------------------------------------------
awk '
    FNR == 1 { reported = 0 }
    length($0) > 100 { print FILENAME ":" FNR ": " length($0) " characters; at most 100" }
    FNR == 801 { print FILENAME ": over 800 lines" }
    /\t/ && !reported { reported = 1; print FILENAME ":" FNR ": a tab; indent with 4 spaces" }
    FILENAME ~ /\.[ch]$/ && /(^|[^A-Za-z_])(template *<|namespace |std::|nullptr|static_cast|constexpr )/ {
        print FILENAME ":" FNR ": C++ outside .cu"
    }
    FILENAME !~ /^(formats|tests)\// &&
        /(^|[^A-Za-z0-9])(scale_inv|inv_scale|scaling_factor)|(^|[^A-Za-z0-9_])sf([^A-Za-z0-9_]|$)/ {
        print FILENAME ":" FNR ": a banned name for a scale"
    }' "${files[@]}" >>"$problems"
awk 'FNR == 801 { print FILENAME ": over 800 lines" }' "${scripts[@]}" >>"$problems"
grep -nE '\b(TO''DO|FIX''ME|XX''X)\b' "${files[@]}" "${scripts[@]}" | sed 's/$/  <- unfinished/' >>"$problems"
grep -rn -e '--use_fast_''math' -e '-use_fast_''math' CMakeLists.txt CMakePresets.json $modules .ci 2>/dev/null |
    sed 's/$/  <- NaN, Inf and subnormals are our subject/' >>"$problems"
find . \( -name '*.cpp' -o -name '*.cc' -o -name '*.cxx' -o -name '*.hpp' -o -name '*.hh' \) \
    -not -path './build*' -not -path './.git/*' | sed 's/$/: C++ outside .cu/' >>"$problems"

# ---- names --------------------------------------------------------------------------------------
for f in "${files[@]}" "${scripts[@]}"; do echo "${f##*/} $f"; done | sort |
    awk '$1 == last { print $2 ": a second file of this name beside " path } { last = $1; path = $2 }' \
        >>"$problems"

if [ -s "$problems" ]; then
    cat "$problems" >&2
    exit 1
fi
[ $# -gt 0 ] && exit 0

# ---- a tree of offences: each must be seen ------------------------------------------------------
bad=$(mktemp -d) || exit 1
trap 'rm -rf "$problems" "$bad"' EXIT
mkdir "$bad"/{core,formats,quant,attention,calib,cli,tests}
echo '#include "core/status.h"' >"$bad/core/core.h"
touch "$bad"/core/{status.h,cuda_check.h,device_impl.h} "$bad/quant/table.h" "$bad/tests/twin.c"
echo '#include "core/cuda_check.h"' >"$bad/quant/quant.h"
{ echo '#include "quant/quant.h"'; echo '#include "core/status.h"'; } >"$bad/formats/reader.c"
{ echo '#include "attention/attention.h"'; echo '#include "quant/table.h"'
  echo '#include "core/device_impl.h"'; } >"$bad/calib/loop.c"
{ echo 'int sf;'; echo 'std::vector v;'; printf '\tx\n'; printf '%0101d\n' 0; } >"$bad/quant/twin.c"
{ echo "// TO""DO"; yes | head -n 800; } >"$bad/cli/long.c"
touch "$bad/cli/plus.cpp"
bash "$self" "$bad" 2>"$problems" && { echo "test_law: accepts a tree of offences" >&2; exit 1; }
while read -r want; do
    grep -qF "$want" "$problems" || { echo "test_law: does not see: $want" >&2; exit 1; }
done <<'END'
formats/reader.c:1: includes "quant/quant.h": formats/ may include core
calib/loop.c:1: includes "attention/attention.h": calib/ may include
calib/loop.c:2: includes "quant/table.h": it is private to quant/
calib/loop.c:3: includes "core/device_impl.h": it is private to core/
quant/quant.h:1: includes "core/cuda_check.h": it is private to core/
quant/twin.c:1: a banned name
quant/twin.c:2: C++ outside .cu
quant/twin.c:3: a tab
quant/twin.c:4: 101 characters
tests/twin.c: a second file of this name
cli/long.c: over 800 lines
cli/long.c:1:
plus.cpp: C++ outside .cu
END
grep -q 'formats/reader.c:2' "$problems" && { echo 'test_law: refuses core/status.h' >&2; exit 1; }
exit 0
