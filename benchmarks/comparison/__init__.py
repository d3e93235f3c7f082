"""Two runs in: what differs beyond chance, and what fell behind a baseline."""
