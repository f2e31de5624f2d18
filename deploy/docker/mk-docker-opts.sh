#!/bin/sh
# Turns flannel's subnet file into options for the Docker daemon. Needs a POSIX shell and no other program;
# `weft docker-opts` does the same.

export LC_ALL=C # the order of what set prints

usage() {
	printf '%s\n' "usage: $0 [-f SUBNET-FILE] [-d OUTPUT] [-i] [-c] [-k KEY] [-m]

  -f  subnet file to read (/run/flannel/subnet.env)
  -d  environment file to write (/run/docker_opts.env)
  -i  write one variable per option, DOCKER_OPT_MTU=...
  -c  write one variable with all options; both is the default
  -k  name of the combined variable (DOCKER_OPTS)
  -m  leave out --ip-masq" >&2
	exit 1
}

die() {
	printf '%s: %s\n' "$0" "$1" >&2
	exit 1
}

# is_name TEXT: can it be the name of a variable?
is_name() {
	case $1 in
	'' | [0-9]* | *[!A-Za-z0-9_]*) return 1 ;;
	esac
}

# option_names: the variables that hold one option each, from the environment too, in order.
option_names() {
	set | while IFS='=' read -r name _; do
		case $name in
		DOCKER_OPT_*) if is_name "$name"; then printf '%s\n' "$name"; fi ;;
		esac
	done
}

# to_number A.B.C.D: sets number, or fails.
to_number() {
	case $1 in
	*[!0-9.]* | *..* | .* | *.) return 1 ;;
	esac
	old_ifs=$IFS
	IFS=.
	set -- $1
	IFS=$old_ifs
	[ $# -eq 4 ] || return 1
	number=$((($1 << 24) + ($2 << 16) + ($3 << 8) + $4))
}

# hex NUMBER: sets forward and backward, the two ways in which /proc/net/route may write an address: it
# prints the bytes as a number of the machine's own order.
hex() {
	a=$(($1 >> 24 & 255)) b=$(($1 >> 16 & 255)) c=$(($1 >> 8 & 255)) d=$(($1 & 255))
	forward=$(printf '%02X%02X%02X%02X' $a $b $c $d)
	backward=$(printf '%02X%02X%02X%02X' $d $c $b $a)
}

# routed_away PREFIX: does the routing table send the subnet of PREFIX to a gateway?
routed_away() {
	length=${1#*/}
	case $length in
	'' | *[!0-9]* | ???*) return 1 ;;
	esac
	to_number "${1%%/*}" && [ "$length" -le 32 ] && [ -r /proc/net/route ] || return 1
	mask=$((0xffffffff << (32 - length) & 0xffffffff))
	hex $((number & mask))
	dst_forward=$forward dst_backward=$backward
	hex $mask
	while read -r _ dst gateway _ _ _ _ route_mask _; do
		case "$gateway $dst $route_mask" in
		"00000000 "*) ;;
		*" $dst_forward $forward" | *" $dst_backward $backward") return 0 ;;
		esac
	done </proc/net/route
	return 1
}

input=/run/flannel/subnet.env
output=/run/docker_opts.env
key=DOCKER_OPTS
individual=false
combined=false
masquerade=true

while getopts f:d:ick:m flag; do
	case $flag in
	f) input=$OPTARG ;;
	d) output=$OPTARG ;;
	i) individual=true ;;
	c) combined=true ;;
	k) key=$OPTARG ;;
	m) masquerade=false ;;
	*) usage ;;
	esac
done
is_name "$key" || die "-k: $key is no name for a variable"
if ! $individual && ! $combined; then
	individual=true
	combined=true
fi

case $input in
*/*) ;;
*) input=./$input ;; # else the shell looks for it in PATH
esac
if [ -f "$input" ]; then
	. "$input"
fi

if [ -n "$FLANNEL_SUBNET" ]; then
	DOCKER_OPT_BIP=--bip=$FLANNEL_SUBNET
fi
if [ -n "$FLANNEL_MTU" ]; then
	DOCKER_OPT_MTU=--mtu=$FLANNEL_MTU
fi
if [ -n "$FLANNEL_IPMASQ" ] && $masquerade; then
	case $FLANNEL_IPMASQ in
	true) DOCKER_OPT_IPMASQ=--ip-masq=false ;; # flannel does it
	false) DOCKER_OPT_IPMASQ=--ip-masq=true ;;
	*) die "FLANNEL_IPMASQ: $FLANNEL_IPMASQ is neither true nor false" ;;
	esac
fi

eval "all=\$$key"
if [ -n "$all" ]; then
	all="$all "
fi
: >"$output" || exit 1
for name in $(option_names); do
	eval "value=\$$name"
	if $individual; then
		printf '%s="%s"\n' "$name" "$value" >>"$output"
	fi
	all="$all $value"
done
if $combined; then
	printf '%s="%s"\n' "$key" "$all" >>"$output"
fi

if routed_away "$FLANNEL_SUBNET"; then
	die "the routing table sends $FLANNEL_SUBNET to a gateway: Docker would get none of its packets"
fi
