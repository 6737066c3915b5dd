/* Does a Wake-on-LAN packet arrive over IPv6, and is a failure to send one reported? */

#include <guacamole/error.h>
#include <guacamole/wol.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

#define MAC "00:11:22:33:44:55"

int main(void) {

    struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    socklen_t length = sizeof(address);
    unsigned char packet[256];

    /* Nothing can be sent to port 0 */
    printf("port 0: %s\n", guac_wol_wake(MAC, "127.0.0.1", 0) ? "an error" : "success");
    fflush(stdout);

    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr*) &address, sizeof(address))
            || getsockname(fd, (struct sockaddr*) &address, &length)) {
        printf("no IPv6\n");
        return 0;
    }

    guac_wol_wake(MAC, "::1", ntohs(address.sin6_port));
    ssize_t received = recv(fd, packet, sizeof(packet), MSG_DONTWAIT);
    printf("IPv6: %s\n", received == 102 ? "arrives" : "does not arrive");
    return 0;

}
