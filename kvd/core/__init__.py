"""The order of a write, the clock, housekeeping: what runs a store on the event loop."""
