#!/bin/sh
# Gives this machine the addresses in the file `settings` beside it. Nothing of it outlives a restart, and no
# file of the machine is changed: back at its own site, without this drive, it is configured as it always was.
# Needs a POSIX shell and `ip`; where NetworkManager or systemd-networkd own an adapter, they are told.
#
#   sh apply.sh            now
#   sh apply.sh install    now, and at each start from this drive (systemd: one unit in /etc/systemd/system)
#
# Prints what it did. Ends with 0 when all of it was done.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
settings=${SECONDSITE_SETTINGS:-$here/settings}
system=${SECONDSITE_ROOT:-} # another root, for tests
run=$system/run/secondsite
failed=0
mkdir -p "$run" || exit 1

problem() {
    echo "problem: $*"
    failed=1
}

# The adapter itself has the hardware address, and so may bridges, bonds and VLANs upon it.
interface_of() { # $1: hardware address
    for path in "$system"/sys/class/net/*; do
        [ -e "$path/device" ] && [ "$(cat "$path/address" 2>/dev/null)" = "$1" ] && echo "${path##*/}" && return
    done
    return 1
}

values_of() { # $1: word, $2: hardware address
    while read -r word mac value _; do
        [ "$word" = "$1" ] && [ "$mac" = "$2" ] && echo "$value"
    done <"$settings"
}

lines_of() { # $1: word
    while read -r word rest; do
        [ "$word" = "$1" ] && echo "$rest"
    done <"$settings"
}

is_active() { # $1: unit
    command -v systemctl >/dev/null 2>&1 && systemctl -q is-active "$1" 2>/dev/null
}

end_clients() { # $1: interface; DHCP clients would put their own address back
    for process in "$system"/proc/[0-9]*; do
        line=$(tr '\000' ' ' <"$process/cmdline" 2>/dev/null) || continue
        case $line in
        *dhclient*" $1 "* | *udhcpc*" $1 "* | *dhcpcd*" $1 "*) kill "${process##*/}" 2>/dev/null ;;
        esac
    done
}

let_go() { # $1: interface
    if command -v nmcli >/dev/null 2>&1 && nmcli -t general status >/dev/null 2>&1; then
        nmcli device set "$1" managed no || problem "NetworkManager keeps $1"
    fi
    end_clients "$1"
}

networkd_file() { # $1: hardware address, $2: static or dhcp
    echo "[Match]"
    echo "MACAddress=$1"
    echo "[Network]"
    if [ "$2" = dhcp ]; then
        echo "DHCP=ipv4"
    else
        echo "DHCP=no"
        for address in $(values_of address "$1"); do echo "Address=$address"; done
        for gateway in $(values_of gateway "$1"); do
            printf '[Route]\nGateway=%s\nGatewayOnLink=yes\n[Network]\n' "$gateway"
        done
    fi
    for server in $(lines_of dns); do echo "DNS=$server"; done
    for domain in $(lines_of search); do echo "Domains=$domain"; done
}

by_networkd() { # $1: interface, $2: hardware address, $3: static or dhcp
    mkdir -p "$system/run/systemd/network"
    networkd_file "$2" "$3" >"$system/run/systemd/network/00-secondsite-$1.network"
    networkctl reload && networkctl reconfigure "$1" || problem "systemd-networkd does not take $1"
}

by_ip() { # $1: interface, $2: hardware address
    ip link set "$1" up || problem "$1 does not come up"
    ip addr flush dev "$1" scope global || problem "$1 keeps its former addresses"
    for address in $(values_of address "$2"); do
        ip addr add "$address" dev "$1" || problem "$1 does not take $address"
    done
    for gateway in $(values_of gateway "$2"); do
        case $gateway in
        *:*) ip -6 route replace default via "$gateway" dev "$1" || problem "no route by $gateway" ;;
        *) ip route replace default via "$gateway" dev "$1" || problem "no route by $gateway" ;;
        esac
    done
}

by_dhcp() { # $1: interface
    ip link set "$1" up
    if command -v nmcli >/dev/null 2>&1 && nmcli -t general status >/dev/null 2>&1; then
        # a connection in memory only
        nmcli connection add save no type ethernet ifname "$1" con-name "secondsite-$1" ipv4.method auto &&
            nmcli connection up "secondsite-$1" && return
    fi
    ip addr flush dev "$1" scope global
    if command -v dhclient >/dev/null 2>&1; then
        dhclient -nw "$1" && return
    elif command -v dhcpcd >/dev/null 2>&1; then
        dhcpcd -b "$1" && return
    elif command -v udhcpc >/dev/null 2>&1; then
        udhcpc -i "$1" -b -q && return
    fi
    problem "nothing here asks for an address of $1"
}

# Laid over the machine's own file, which stays as it is beneath.
over() { # $1: our file, $2: the machine's
    umount "$2" 2>/dev/null
    [ -e "$2" ] || : >"$2"
    mount --bind "$1" "$2" 2>/dev/null || mount -o bind "$1" "$2" || problem "$2 cannot be covered"
}

names() {
    if [ -n "$(lines_of dns)$(lines_of search)" ] && ! is_active systemd-resolved; then
        {
            [ -n "$(lines_of search)" ] && echo "search $(lines_of search | tr '\n' ' ')"
            for server in $(lines_of dns); do echo "nameserver $server"; done
        } >"$run/resolv.conf"
        over "$run/resolv.conf" "$system/etc/resolv.conf"
    elif [ -n "$(lines_of dns)$(lines_of search)" ]; then
        while read -r word mac _; do
            [ "$word" = nic ] || continue
            interface=$(interface_of "$mac") || continue
            # shellcheck disable=SC2046 # one word each
            [ -z "$(lines_of dns)" ] || resolvectl dns "$interface" $(lines_of dns) || problem "no resolver"
            # shellcheck disable=SC2046
            [ -z "$(lines_of search)" ] || resolvectl domain "$interface" $(lines_of search)
        done <"$settings"
    fi
    if [ -n "$(lines_of host)" ]; then
        umount "$system/etc/hosts" 2>/dev/null
        { cat "$system/etc/hosts" 2>/dev/null; lines_of host; } >"$run/hosts"
        over "$run/hosts" "$system/etc/hosts"
    fi
}

install_unit() {
    if [ -d "$system/run/systemd/system" ]; then
        cp "$here/secondsite-recovered.service" "$system/etc/systemd/system/" && systemctl daemon-reload &&
            systemctl -q enable secondsite-recovered.service && return
    fi
    echo "note: not kept over a restart of this machine, unless it runs apply.sh at each start by itself"
}

# by a number of its own: what runs inside must not read on in our file
while read -r word mac how _ <&3; do
    [ "$word" = nic ] || continue
    if ! interface=$(interface_of "$mac"); then
        problem "there is no adapter $mac"
        continue
    fi
    if is_active systemd-networkd && command -v networkctl >/dev/null 2>&1; then
        let_go "$interface"
        by_networkd "$interface" "$mac" "$how"
    elif [ "$how" = dhcp ]; then
        by_dhcp "$interface"
    else
        let_go "$interface"
        by_ip "$interface" "$mac"
    fi
    echo "$interface: $how $(values_of address "$mac" | tr '\n' ' ')"
done 3<"$settings"
names
[ "$1" = install ] && install_unit
[ "$failed" = 0 ] && lines_of instance >"$run/applied"
exit "$failed"
