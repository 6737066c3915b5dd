# Makes NixOS' services.guacamole-server run this guacd, with room for its sessions.
self:
{ lib, pkgs, ... }:
{
  services.guacamole-server.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
  systemd.services.guacamole-server.serviceConfig = {
    LimitNOFILE = lib.mkDefault 65536;
    TasksMax = lib.mkDefault "infinity";
    # The end of one session for want of memory must not stop all others.
    OOMPolicy = lib.mkDefault "continue";
    # guacd ends its sessions itself, a few at a time.
    KillMode = lib.mkDefault "mixed";
  };
}
