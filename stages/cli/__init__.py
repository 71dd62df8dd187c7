"""What people type: `koqa`, and the options that the stages share."""
