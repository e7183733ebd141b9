#!/bin/sh
# Takes a modelvault bundle apart on a machine that has no modelvault.
#
#   sh restore.sh [--key KEY.pub] [--files DIR] [--only MODEL] OUT [BUNDLE_DIR...]
#
# Needs a POSIX shell and tools, tar, zstd and sha256sum; --key needs openssl 3. A drive is read once: what zstd and tar get is
# a copy of a volume in OUT whose sum (with --key, the signature of the sums) was checked, so what the drive holds later does not
# matter. No file gets its name in OUT before its SHA-256 was compared.
#
# Exit codes: 0 all is whole, 1 failed, 2 usage, 3 it is not, since volumes are missing or damaged, and what has arrived
# is kept, 10 a thin bundle lacks its base, 12 digest mismatch, 14 signature or format refused, 15 nothing more could be written.
set -euf
LC_ALL=C
export LC_ALL
unset CDPATH TAR_OPTIONS EXTRACT_UNSAFE_SYMLINKS # these would change what cd and tar do
umask 022

say() { printf '%s\n' "$*"; }

# fail CODE MESSAGE [HINT]
fail() {
    printf 'error: %s\n' "$2" >&2
    if [ $# -gt 2 ]; then printf 'hint: %s\n' "$3" >&2; fi
    exit "$1"
}

usage() {
    printf '%s\n' "usage: sh restore.sh [--key KEY.pub] [--files DIR] [--only MODEL] OUT [BUNDLE_DIR...]" \
        "  OUT           a new directory, or that of an earlier run, which then goes on" \
        "  BUNDLE_DIR    a directory that ends in .mvbundle, one for each drive; default: where restore.sh lies" \
        "  --key FILE    check the signature with this public key: one that did not come on the drive" \
        "  --files DIR   give each model's files their own names: hard links to OUT; moved out of it where links do not work" \
        "  --only MODEL  restore this model and no other"
}

is_file() { [ -f "$1" ] && [ ! -h "$1" ]; }

digest() { sha256sum < "$1" | cut -c 1-64; }

# The length of a file whose name has no line break. (wc -c would do, but busybox reads the whole file for it.)
size() {
    # shellcheck disable=SC2012 # POSIX has no stat; the fields before the name are fixed
    ls -ln -- "$1" | {
        read -r _ _ _ _ bytes _
        printf '%s' "$bytes"
    }
}

# Make a directory unless it is there. Somebody else's link in its place would lead elsewhere.
own_directory() {
    if [ -h "$1" ]; then fail 1 "$1 is a symbolic link: it is not followed" "remove it, or choose another directory"; fi
    if [ ! -d "$1" ]; then mkdir -- "$1" || fail 15 "cannot make $1"; fi
}

absolute() { (cd -P -- "$1" && pwd -P); }

# decode TEXT: undo percent-encoding. The list was checked: no control characters, so nothing is lost to $( ).
decode() {
    rest=$1
    while :; do
        case $rest in
            *%*) ;;
            *) break ;;
        esac
        printf '%s' "${rest%%"%"*}"
        rest=${rest#*"%"}
        # shellcheck disable=SC2059 # the format is a backslash and three octal digits
        printf "\\$(printf '%03o' "0x${rest%"${rest#??}"}")"
        rest=${rest#??}
    done
    printf '%s' "$rest"
}

# ── what was asked for ──

key='' files='' only=''
while [ $# -gt 0 ]; do
    case $1 in
        --key | --files | --only)
            if [ $# -lt 2 ] || [ -z "$2" ]; then
                usage >&2
                exit 2
            fi
            case $1 in
                --key) key=$2 ;;
                --files) files=$2 ;;
                --only) only=$2 ;;
            esac
            shift 2
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        -*)
            usage >&2
            exit 2
            ;;
        *) break ;;
    esac
done
if [ $# -eq 0 ] || [ -z "$1" ]; then
    usage >&2
    exit 2
fi
out=$1
shift
if [ $# -eq 0 ]; then set -- "$(dirname -- "$0")"; fi

for tool in tar zstd sha256sum awk dd find sync; do
    command -v "$tool" > /dev/null || fail 1 "this needs $tool, which is not installed"
done
for drive in "$@"; do
    [ -d "$drive" ] || fail 2 "there is no directory $drive" "name directories that end in .mvbundle"
done
if [ -d "$out" ]; then
    if [ -n "$(ls -A -- "$out")" ] && [ ! -e "$out/oci-layout" ] && [ ! -e "$out/.restore" ]; then
        fail 2 "$out holds something else" "name a new directory, or that of an earlier run"
    fi
else
    mkdir -p -- "$out" || fail 15 "cannot make $out"
fi
out=$(absolute "$out")
work=$out/.restore run=$out/.restore/run stage=$out/.restore/stage parts=$out/.restore/parts held=$out/.restore/held
lock=$work/lock blobs=$out/blobs/sha256
for directory in "$work" "$parts" "$held" "$out/blobs" "$blobs"; do own_directory "$directory"; done
chmod 700 "$work"

# One run at a time. The lock of one that was killed on this machine is taken over, by one of those that try.
take_lock() {
    here=$(uname -n)
    if ! mkdir "$lock" 2> /dev/null; then
        if [ ! -d "$lock" ] || [ -h "$lock" ]; then fail 15 "cannot make $lock"; fi
        pid='' host=''
        if is_file "$lock/owner"; then read -r pid host < "$lock/owner" || :; fi
        case $pid in
            *[!0-9]*) pid='' ;;
        esac
        if [ -z "$pid" ] || [ "$host" != "$here" ] || kill -0 "$pid" 2> /dev/null || ! mkdir "$lock/after-$pid" 2> /dev/null
        then
            fail 1 "another run is at work in $out${pid:+: process $pid on $host}" \
                "wait for its end; if there is none, remove $lock and run the same command again"
        fi
        rm -f "$lock/owner"
    fi
    trap 'rm -rf "$stage" "$run" "$lock"' EXIT
    printf '%s\n' "$$ $here" > "$lock/owner" || fail 15 "cannot write to $out"
}

take_lock
trap 'exit 130' INT
trap 'exit 143' TERM
rm -rf "$run"
mkdir "$run" || fail 15 "cannot write to $out"

# ── each drive: the signature, the sums, the list ──

if [ -n "$key" ]; then
    command -v openssl > /dev/null || fail 1 "checking the signature needs openssl 3, which is not installed"
    case $(openssl version) in
        "OpenSSL "[3-9].* | "OpenSSL "[1-9][0-9]*) ;;
        *) fail 1 "checking the signature needs openssl 3, this is $(openssl version)" ;;
    esac
    if [ ! -f "$key" ] || ! openssl pkey -pubin -in "$key" -pubout -out "$run/key" 2> /dev/null ||
        ! openssl pkey -pubin -in "$run/key" -outform DER -out "$run/der" 2> /dev/null; then
        fail 2 "$key is not a public key in PEM"
    fi
    say "the key's fingerprint, which must be the one that was carried separately:"
    say "  $(digest "$run/der" | sed -e 's/..../&-/g' -e 's/-$//' -e 's/-/\n  /8')"
fi

# sum DRIVE NAME: what the sums of that drive say of a file; nothing if they do not name it.
sum() { awk -v name="$2" '$2 == name { print $1; exit }' "$run/$1.sums"; }

# Whether a list says nothing but what restore.list may say. It is asked before a line of it is used.
is_list() {
    hex='[0-9a-f]{64}' number='(0|[1-9][0-9]{0,15})' volume='[1-9][0-9]{0,4}' name='[A-Za-z0-9_][A-Za-z0-9_.-]*'
    # no control character, dot, slash or backslash is ever encoded
    part='([A-Za-z0-9._~-]|%2[0-9A-D]|%[34689A-F][0-9A-F]|%5[0-9ABDEF]|%7[0-9A-E])+'
    good=$(grep -Exc \
        -e "modelvault-restore/1" \
        -e "bundle [A-Za-z0-9][A-Za-z0-9._-]{0,63} $number $hex $volume" \
        -e "patches $hex" \
        -e "model $number ($name/)?$name(:$name)?" \
        -e "document $number $hex $number" \
        -e "file $number $hex $number $part(/$part)*" \
        -e "base $hex $number" \
        -e "layout $volume $hex $number (oci-layout|index.json)" \
        -e "whole $volume $hex $number" \
        -e "slice $volume $hex $number $number" \
        -e "end" "$1") || return 1
    [ "$good" -eq "$(grep -c '' "$1")" ] &&
        [ "$(tr -d 'A-Za-z0-9 ._~:/%\n-' < "$1" | wc -c)" -eq 0 ] &&
        [ "$(grep -Ec '^file .*[ /]\.\.?(/|$)' "$1")" -eq 0 ] &&
        [ "$(sed -n 1p "$1")" = modelvault-restore/1 ] && [ "$(sed -n '$p' "$1")" = end ] &&
        [ "$(grep -c '^bundle ' "$1")" -eq 1 ] && grep -q '^model ' "$1"
}

# Whether sums name nothing but files of one directory.
is_sums() {
    good=$(grep -Exc '[0-9a-f]{64}  [A-Za-z0-9][A-Za-z0-9._-]*' "$1") || return 1
    [ "$good" -eq "$(grep -c '' "$1")" ] && [ "$(tr -d 'A-Za-z0-9 ._\n-' < "$1" | wc -c)" -eq 0 ]
}

# check_drive NUMBER DIRECTORY: what is used later are copies, so that it is what was checked.
check_drive() {
    for name in SHA256SUMS restore.list; do
        is_file "$2/$name" || fail 1 "there is no $name in $2" \
            "name directories that end in .mvbundle; one without SHA256SUMS was not written to its end"
        [ "$(size "$2/$name")" -le 67108864 ] || fail 14 "the bundle is refused: $2/$name is too long"
    done
    cat < "$2/SHA256SUMS" > "$run/$1.sums"
    if [ -n "$key" ]; then
        is_file "$2/SHA256SUMS.sig" || fail 14 "the bundle in $2 is not signed: there is no SHA256SUMS.sig"
        openssl pkeyutl -verify -pubin -inkey "$run/key" -rawin -in "$run/$1.sums" -sigfile "$2/SHA256SUMS.sig" \
            > /dev/null 2>&1 || fail 14 "the signature in $2 is not by that key, or SHA256SUMS was changed" \
            "is it the key that signed this bundle? its fingerprint is above"
    fi
    is_sums "$run/$1.sums" || fail 14 "the bundle is refused: $2/SHA256SUMS is not one that modelvault writes"
    cat < "$2/restore.list" > "$run/$1.list"
    [ "$(digest "$run/$1.list")" = "$(sum "$1" restore.list)" ] ||
        fail 12 "$2/restore.list is damaged" "copy it from another drive of the same bundle"
    cmp -s "$run/1.list" "$run/$1.list" || fail 2 "the drives hold different bundles: $2 is another one than the first" \
        "restore them one after the other"
}

drives=0
for drive in "$@"; do
    drives=$((drives + 1))
    check_drive "$drives" "$(absolute "$drive")"
done
list=$run/1.list
is_list "$list" || fail 14 "the bundle is refused: its restore.list is not one that modelvault writes"
read -r _ label sequence index volumes << EOF_BUNDLE
$(grep '^bundle ' "$list")
EOF_BUNDLE
[ "$(sum 1 bundle.json)" = "$index" ] || fail 14 "the bundle is refused: its restore.list is of another bundle.json"
if grep -q '^patches ' "$list"; then
    fail 1 "this is a patch: it holds pieces of another bundle, and only modelvault puts them in their places" \
        "have a whole bundle written: modelvault bundle without --answer"
fi
say "bundle $label, sequence $sequence"
if [ -n "$key" ]; then say "signature checked"; else say "signature NOT checked: name the signer's key with --key KEY.pub"; fi

# ── what is wanted, and what of it is here ──

model='' # the number of the only one that is wanted, or nothing for all
if [ -n "$only" ]; then
    model=$(ONLY=$only awk '$1 == "model" && $3 == ENVIRON["ONLY"] { print $2; exit }' "$list")
    [ -n "$model" ] || fail 2 "the bundle holds no model $only" "it holds: $(sed -n 's/^model [0-9]* //p' "$list" | tr '\n' ' ')"
fi
awk -v model="$model" '($1 == "document" || $1 == "file") && (model == "" || $2 == model) { print $3, $4 }' "$list" |
    sort -u > "$run/wanted"
# members: the pieces of wanted blobs, as KIND VOLUME HEX SIZE [OFFSET], and the two files of the layout
awk 'FILENAME == ARGV[1] { wanted[$1]; next }
    $1 == "layout" || (($1 == "whole" || $1 == "slice") && $3 in wanted)' "$run/wanted" "$list" > "$run/members"

: > "$run/lacking"
awk 'FILENAME == ARGV[1] { wanted[$1]; next } $1 == "base" && $2 in wanted { print $2, $3 }' "$run/wanted" "$list" > "$run/base"
while read -r hex bytes <&3; do
    if ! is_file "$blobs/$hex" || [ "$(size "$blobs/$hex")" -ne "$bytes" ]; then say "$hex" >> "$run/lacking"; fi
done 3< "$run/base"
if [ -s "$run/lacking" ]; then
    awk 'FILENAME == ARGV[1] { lacking[$1]; next }
        $1 == "model" { name = $3 }
        $1 == "file" && $3 in lacking { print "missing: " $5 " of " name " (" $3 ")" }' "$run/lacking" "$list" >&2
    fail 10 "this is a thin bundle: it leaves out files that $out does not have" \
        "restore the bundle that brought them into the same directory first, or have a bundle written without --for"
fi

# What is longer than its blob would count as arrived, and never become whole.
while read -r hex bytes <&3; do
    if is_file "$parts/$hex" && [ "$(size "$parts/$hex")" -gt "$bytes" ]; then rm -f "$parts/$hex"; fi
done 3< "$run/wanted"

# is_here HEX SIZE OFFSET: whether that piece of a blob has arrived, in this run or an earlier one.
is_here() {
    if is_file "$blobs/$1"; then return 0; fi
    if is_file "$held/$1.$3" && [ "$(size "$held/$1.$3")" -eq "$2" ]; then return 0; fi
    is_file "$parts/$1" && [ "$(size "$parts/$1")" -ge $(($2 + $3)) ]
}

# is_wanted VOLUME: whether it holds something that has not arrived.
is_wanted() {
    awk -v volume="$1" '$2 == volume' "$run/members" > "$run/now"
    while read -r kind _ hex bytes offset <&3; do
        case $kind in
            layout) if ! is_file "$out/$offset" || [ "$(digest "$out/$offset")" != "$hex" ]; then return 0; fi ;;
            *) is_here "$hex" "$bytes" "${offset:-0}" || return 0 ;;
        esac
    done 3< "$run/now"
    return 1
}

# copy_volume VOLUME DRIVE...: make $run/volume a sound copy, or say in $outcome why there is none. It fits beside what is there:
# it is gone before slices are joined, which takes as much.
copy_volume() {
    name=$(printf 'volume-%04d.tar.zst' "$1")
    shift
    drive_number=0 outcome=missing
    for drive in "$@"; do
        drive_number=$((drive_number + 1))
        expected=$(sum "$drive_number" "$name")
        file=$(absolute "$drive")/$name
        if [ -z "$expected" ] || ! is_file "$file"; then continue; fi
        if [ "$(tee "$run/volume" < "$file" | sha256sum | cut -c 1-64)" = "$expected" ]; then
            [ "$(size "$run/volume")" -eq "$(size "$file")" ] || fail 15 "$name could not be copied to $out" "$make_room"
            outcome=sound
            return 0
        fi
        rm -f "$run/volume"
        outcome=damaged
    done
    return 1
}

# ── extract, join ──

make_room="make room if the disk is full, and run the same command again: what is there is kept"

# Append what can be: dd cuts the part at the offset first, so that an interrupted run does no harm. Slices are in ascending order.
join_slices() {
    while read -r kind _ hex bytes offset <&3; do
        slice=$held/$hex.$offset part=$parts/$hex length=0
        if [ "$kind" != slice ] || ! is_file "$slice"; then continue; fi
        if is_file "$part"; then length=$(size "$part"); fi
        if [ "$length" -ge $((offset + bytes)) ]; then
            rm -f "$slice"
        elif [ "$offset" -eq 0 ]; then
            chmod 600 "$slice"
            mv -f "$slice" "$part"
        elif [ "$length" -ge "$offset" ]; then
            block=1048576
            while [ $((offset % block)) -ne 0 ]; do block=$((block / 2)); done
            dd if="$slice" of="$part" bs="$block" seek=$((offset / block)) 2> /dev/null ||
                fail 15 "cannot write to $out" "$make_room"
            rm -f "$slice"
        fi
    done 3< "$run/members"
}

# extract VOLUME: from its copy, which is gone then.
extract() {
    rm -rf "$stage"
    mkdir -m 700 "$stage"
    zstd -dcq < "$run/volume" | tar -xf - -o -C "$stage" || fail 15 "volume $1 could not be extracted to $out" "$make_room"
    rm -f "$run/volume"
    if [ -n "$(find "$stage" \( ! -type d ! -type f \) -o \( -type f -links +1 \))" ]; then
        fail 14 "the bundle is refused: volume $1 holds something else than files"
    fi
    awk -v volume="$1" '$2 == volume' "$run/members" > "$run/now"
    while read -r kind _ hex bytes offset <&3; do
        case $kind in
            layout) path=$offset target=$run/$offset ;;
            whole) path=blobs/sha256/$hex target=$parts/$hex offset=0 ;;
            slice) path=slices/sha256/$hex/$(printf '%016d' "$offset") target=$held/$hex.$offset ;;
        esac
        if ! is_file "$stage/$path" || [ "$(size "$stage/$path")" -ne "$bytes" ]; then
            fail 14 "the bundle is refused: volume $1 does not hold $path as it should"
        fi
        if [ "$kind" = layout ]; then
            [ "$(digest "$stage/$path")" = "$hex" ] || fail 12 "$path in volume $1 has another digest than restore.list says"
            put_layout "$path"
        elif ! is_here "$hex" "$bytes" "$offset"; then
            mv -f "$stage/$path" "$target"
        fi
    done 3< "$run/now"
    rm -rf "$stage"
}

# put_layout NAME: the index.json of an earlier bundle is kept beside the new one.
put_layout() {
    if [ -h "$out/$1" ] || [ -d "$out/$1" ]; then fail 1 "$out/$1 is in the way" "remove it"; fi
    if [ "$1" = index.json ] && [ -e "$out/$1" ] && ! cmp -s "$stage/$1" "$out/$1"; then
        mv -f "$out/$1" "$out/$1.before-$label-$sequence"
    fi
    mv -f "$stage/$1" "$out/$1"
}

: > "$run/absent"
number=1
while [ "$number" -le "$volumes" ]; do
    if is_wanted "$number"; then
        copy_volume "$number" "$@" || say "$number $outcome" >> "$run/absent"
        say "volume $number of $volumes: $outcome"
        if [ "$outcome" = sound ]; then
            say "volume $number of $volumes: extracting"
            extract "$number"
            join_slices
        fi
    fi
    number=$((number + 1))
done

# ── compare every blob with its name ──

sync # so that a power cut does not leave a name without its content
bad=0
: > "$run/good"
while read -r hex bytes <&3; do
    blob=$blobs/$hex part=$parts/$hex
    if is_file "$blob"; then
        if [ "$(digest "$blob")" = "$hex" ]; then
            say "$hex" >> "$run/good"
        else
            bad=$((bad + 1))
            printf '%s\n' "damaged: $blob; remove it, and run the same command again" >&2
        fi
    elif is_file "$part" && [ "$(size "$part")" -eq "$bytes" ]; then
        if [ "$(digest "$part")" = "$hex" ]; then
            if [ -e "$blob" ] || [ -h "$blob" ]; then fail 1 "$blob is in the way" "remove it"; fi
            chmod 444 "$part"
            mv -f "$part" "$blob"
            say "$hex" >> "$run/good"
        else
            bad=$((bad + 1))
            rm -f "$part"
            printf '%s\n' "damaged: $hex is not what its name says, and was removed" >&2
        fi
    fi
done 3< "$run/wanted"
awk -v model="$model" 'FILENAME == ARGV[1] { good[$1]; next }
    $1 == "model" && (model == "" || $2 == model) { name[$2] = $3; order[++count] = $2 }
    ($1 == "document" || $1 == "file") && !($3 in good) { lacks[$2] = 1 }
    END { for (i = 1; i <= count; i++) print (order[i] in lacks ? "waiting" : "whole"), order[i], name[order[i]] }' \
    "$run/good" "$list" > "$run/models"

# ── names of their own ──

# own_name FILE HEX LAST: LAST says whether no other file needs the blob after this one.
own_name() {
    if [ -e "$1" ] || [ -h "$1" ]; then
        there=''
        if is_file "$1"; then there=$(digest "$1"); fi
        if [ "$there" = "$2" ]; then return 0; fi
        # What an earlier bundle brought is replaced: the layout still has it.
        if [ -z "$there" ] || ! is_file "$blobs/$there"; then
            fail 1 "$1 is in the way" "remove it, or choose another directory"
        fi
    fi
    # Beside the models' directories: no name of a model begins with a dot, and any name may be one of a model's files.
    temporary=$files/.restoring
    rm -f "$temporary"
    if ! ln "$blobs/$2" "$temporary" 2> /dev/null; then
        if [ "$3" = last ]; then
            mv "$blobs/$2" "$temporary"
        else
            cp "$blobs/$2" "$temporary"
        fi || fail 15 "cannot write $1" "make room, and run the same command again"
    fi
    mv -f "$temporary" "$1"
}

# own_names NUMBER NAME: the directory is called as modelvault's folder engine would call it, and as that of no other name.
own_names() {
    root=$files/$(printf '%s' "$2" | sed -e 's,--,-+,g' -e '/\//s,:,--,' -e 's,/,--,' -e 's,:,@,')
    own_directory "$root"
    awk -v model="$1" '$2 == model' "$run/files" > "$run/now"
    while read -r last _ hex path <&3; do
        directory=$root
        rest_of_path=$path
        while [ "$rest_of_path" != "${rest_of_path#*/}" ]; do
            directory=$directory/$(decode "${rest_of_path%%/*}")
            own_directory "$directory"
            rest_of_path=${rest_of_path#*/}
        done
        own_name "$directory/$(decode "$rest_of_path")" "$hex" "$last"
    done 3< "$run/now"
}

if [ -n "$files" ]; then
    mkdir -p -- "$files" || fail 15 "cannot make $files"
    files=$(absolute "$files")
    # of files that share a blob, the last one may have it
    awk 'FILENAME == ARGV[1] { if ($1 == "whole") whole[$2]; next }
        $1 == "file" && $2 in whole { line[++count] = $2 " " $3 " " $5; blob[count] = $3; last[$3] = count }
        END { for (i = 1; i <= count; i++) print (last[blob[i]] == i ? "last" : "more"), line[i] }' \
        "$run/models" "$list" > "$run/files"
    while read -r state number name <&4; do
        if [ "$state" = whole ]; then own_names "$number" "$name"; fi
    done 4< "$run/models"
fi

# ── what came of it ──

sync
while read -r state _ name <&3; do
    case $state in
        whole) say "whole: $name" ;;
        *) say "waiting: $name" ;;
    esac
done 3< "$run/models"
while read -r number outcome <&3; do say "volume $number is $outcome"; done 3< "$run/absent"
if [ "$bad" -gt 0 ] && [ ! -s "$run/absent" ]; then exit 12; fi
if [ -s "$run/absent" ] || grep -q '^waiting ' "$run/models"; then
    say "what has arrived is kept: run the same command with the drive that holds the rest"
    exit 3
fi
trap - EXIT # the next run may begin as soon as the lock is gone
rm -rf "$work"
if [ -n "$only" ]; then say "index.json in $out names every model of the bundle; only $only is there"; fi
if [ -n "$files" ]; then say "the files are in $files"; else say "the OCI image layout is in $out"; fi
