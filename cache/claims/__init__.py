"""Who may write which shard of a store: locked files in a folder, leases on object storage."""

from cache.claims.folder_claims import AnyClaims, Claims, claims_on

__all__ = ["AnyClaims", "Claims", "claims_on"]
