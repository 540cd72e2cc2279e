"""The report's part on the leaderboard: every expert by the published protocol, accuracy against cost."""
