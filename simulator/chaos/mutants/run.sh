#!/usr/bin/env bash
# Plants known bugs, one at a time, in a copy of the tree, and sees whether the simulation finds each of them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(git -C "$here" rev-parse --show-toplevel)
keep=${FLEETKEY_MUTANTS_DIR:-$top/target/mutants}
target=${FLEETKEY_MUTANTS_TARGET:-$keep/target}
seeds=${FLEETKEY_MUTANTS_SEEDS:-200}
threads=${FLEETKEY_MUTANTS_THREADS:-$(nproc)}
limit=${FLEETKEY_MUTANTS_LIMIT:-1800}

usage() {
    cat <<END
Usage: run.sh [--check | --list] [NAME...]

Each patch in simulator/chaos/mutants plants one bug. For each of them, or for those whose file names begin with a
NAME (a number is enough): apply it to a copy of the tree as it is committed, build the simulation, run up to
$seeds worlds, take the bug out again. A world that fails without the bug, too, does not count. In the end a table
says which rule found which bug, and with how many seeds. The working tree is never touched.

  --check   Only see whether every patch applies to the working tree: takes a second.
  --list    Say what each patch plants.
  --help    This.

Exit code 0 when every bug was found; 1 when one survived, does not apply or does not build.

A patch begins with lines that say what the bug is ("Bug:"), which rule is expected to find it ("Rule:"), and, where
it is not hell with 200 devices, how it is run ("Run: --profile storm --devices 60").

  FLEETKEY_MUTANTS_DIR      where the copy of the tree is kept between runs   (target/mutants)
  FLEETKEY_MUTANTS_TARGET   where it is built                                 (target/mutants/target)
  FLEETKEY_MUTANTS_SEEDS    worlds for each bug at most                       (200)
  FLEETKEY_MUTANTS_THREADS  worlds at the same time                           (as many as there are cores)
  FLEETKEY_MUTANTS_LIMIT    seconds for each bug at most                      (1800)
END
}

mode=run
names=()
for argument in "$@"; do
    case $argument in
        --check) mode=check ;;
        --list) mode=list ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*)
            echo "run.sh: there is no option $argument; see --help" >&2
            exit 2
            ;;
        *) names+=("$argument") ;;
    esac
done

patches=()
for patch in "$here"/[0-9]*.patch; do
    [ ${#names[@]} -gt 0 ] || patches+=("$patch")
    for name in "${names[@]}"; do
        if [[ $(basename "$patch") == "$name"* ]]; then
            patches+=("$patch")
            break
        fi
    done
done
if [ ${#patches[@]} -eq 0 ]; then
    echo "run.sh: no patch is named ${names[*]}" >&2
    exit 2
fi

# What the header of a patch says of FIELD.
header() { sed -n "/^diff /q; s/^$1: //p" "$2"; }

if [ "$mode" = list ]; then
    for patch in "${patches[@]}"; do
        printf '%-46s %s\n' "$(basename "$patch" .patch)" "$(header Bug "$patch")"
    done
    exit 0
fi

if [ "$mode" = check ]; then
    bad=0
    for patch in "${patches[@]}"; do
        for field in Bug Rule; do
            if [ -z "$(header "$field" "$patch")" ]; then
                echo "$(basename "$patch"): does not say its \"$field:\"" >&2
                bad=1
            fi
        done
        if ! git -C "$top" apply --check "$patch"; then
            echo "$(basename "$patch"): does not apply any more: make it anew, so that it plants the same bug" >&2
            bad=1
        fi
    done
    [ $bad -eq 0 ] && echo "all ${#patches[@]} patches apply"
    exit $bad
fi

# One copy for all, and only what differs is written: so builds are incremental.
tree=$keep/tree
mkdir -p "$keep"
[ -d "$tree/.git" ] || git clone --quiet --no-checkout "$top" "$tree"
git -C "$tree" fetch --quiet "$top" HEAD
git -C "$tree" checkout --quiet --force --detach FETCH_HEAD
git -C "$tree" clean --quiet --force -d
take_out() { git -C "$tree" checkout --quiet --force -- .; }
trap take_out EXIT

build() { (cd "$tree" && CARGO_INCREMENTAL=1 CARGO_TARGET_DIR=$target cargo build --quiet --release --locked -p fleetkey-chaos --example chaos); }
chaos=$target/release/examples/chaos

# Without any bug: a world that fails all the same finds nothing.
echo "building what is to be compared with" >&2
build
sound=$keep/sound
cp "$chaos" "$sound"

# Runs worlds until one fails that is sound without the bug: sets `rule`, `needed` and `found`.
hunt() {
    local log=$1 first=1 code broken
    shift
    while [ "$first" -le "$seeds" ]; do
        code=0
        timeout "$limit" "$chaos" "$@" --seed "$first" --seeds $((seeds - first + 1)) --threads "$threads" \
            --no-minimise >"$log" 2>&1 || code=$?
        # BROKEN seed 3: rule 4: one secret per key epoch at 77.0 s: what
        broken=$(sed -n 's/^BROKEN seed //p' "$log" | head -n 1)
        if [ $code -eq 124 ]; then
            rule="SURVIVED: not found in $limit s"
            return
        elif [ $code -eq 0 ]; then
            break
        elif [ $code -ne 1 ] || [ -z "$broken" ]; then
            rule="THE SIMULATION FAILED, see $log"
            return
        fi
        needed=${broken%%:*}
        if "$sound" "$@" --seed "$needed" --no-minimise >/dev/null 2>&1; then
            found=1
            rule=$(sed -E 's/^[0-9]+: (.*) at [0-9.]+ s: .*/\1/' <<<"$broken")
            return
        fi
        echo "seed $needed fails without any bug, too: it does not count" >&2
        first=$((needed + 1))
        needed=""
    done
    rule="SURVIVED $seeds seeds"
}

results=()
failed=0
for patch in "${patches[@]}"; do
    name=$(basename "$patch" .patch)
    log=$keep/$name.log
    began=$SECONDS
    found="" rule="" needed=""
    if ! git -C "$tree" apply "$patch"; then
        rule="DOES NOT APPLY"
    elif ! build >"$log" 2>&1; then
        rule="DOES NOT BUILD, see $log"
    else
        read -r -a how <<<"$(header Run "$patch")"
        [ ${#how[@]} -gt 0 ] || how=(--profile hell --devices 200)
        hunt "$log" "${how[@]}"
    fi
    take_out
    [ -n "$found" ] || failed=1
    line=$(printf '%-46s %-51s %5s %6ss' "$name" "$rule" "$needed" $((SECONDS - began)))
    echo "$line"
    results+=("$line")
done

printf '\n%-46s %-51s %5s %7s\n' "planted" "found by" "seeds" "took"
printf '%s\n' "${results[@]}"
exit $failed
